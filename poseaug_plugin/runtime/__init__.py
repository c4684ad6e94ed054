"""How work is done: recorded, optimized, shared by processes, saved, watched, isolated."""
