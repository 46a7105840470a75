"""
Why a packet may go, or may not: pure questions to the intents that switches hold.

No second opinion on Kubernetes' rules is kept here. The intents of both nodes are compiled as for
the switches, a packet walks the flows (`dunlin.openflow.trace`), and what it meets is told in the
names of Kubernetes objects.
"""
