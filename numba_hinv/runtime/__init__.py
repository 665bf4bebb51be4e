"""What every part of the library runs on: threads, memory, progress, columns of vectors, validation, the cache."""
