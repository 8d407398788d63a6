"""What every program of the package does around its own work.

Settings from files and command lines, the folder of a run, files that are whole or absent, processes, requests to stop,
messages and exit codes. Nothing here knows what is computed, and nothing is imported until a module is asked for.
"""
