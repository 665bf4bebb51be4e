"""What may be promised of a solution, a count or a determinant: functions of products, substitutions and a norm."""
