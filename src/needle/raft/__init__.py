"""Sans-IO Raft: consensus as a deterministic state machine (Ongaro and Ousterhout 2014; Ongaro's thesis 2014).

Everything comes in as arguments (messages, the time, random timeouts) and goes out as a `Ready`. It knows no clock,
no random module, no asyncio and no disk.
"""
