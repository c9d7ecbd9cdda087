"""The verbs as commands: each reads its arguments, calls the library, and prints what came out.

Nothing here decides anything a library caller would miss. Heavy imports stay inside the functions.
"""
