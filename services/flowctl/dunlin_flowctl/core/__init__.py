"""
What each switch should hold, and the least change that gets it there. No I/O, no clock.

`desired` keeps intents compiled; `layer` settles who owns a flow or group; `switch` keeps what one
switch holds and lacks; `delta` and `sync` make ordered change sets.
"""
