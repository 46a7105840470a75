"""
The node: OVSDB, Pod interfaces, the CNI server.

In: CNI calls; facts `switch` (the other nodes'), `block`; `progress.>`, `applied.<node>`; what OVS
and the kernel report. Out: facts `attachment.<node>.>` and `switch._.<node>`; requests to ipam and
flowctl. Invariants: OVSDB is the record of what stands, the stream is made to say the same; the
switch fact is written after all attachments; ADD returns once the Pod's flows are in force; DEL
never fails for what is already gone. ADRs: 0001, 0003.
"""
