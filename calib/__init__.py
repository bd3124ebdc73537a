"""How the numbers are chosen: ranges, roundings, recipes."""
