"""Nets of other frameworks as networks of this library. Each framework is imported by the function that needs it."""
