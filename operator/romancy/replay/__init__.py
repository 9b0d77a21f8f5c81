"""The replay core: (code, history) -> commands. Synchronous and pure: no I/O, no clock, no randomness, no threads.

Nothing but code and history decides what a run does (I1). What a workflow's author sees is `sdk`; what carries out the
commands is `worker`.
"""
