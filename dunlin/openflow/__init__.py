"""
OpenFlow as values: fields, matches, actions, flows, groups. Pure; only `codec.py` knows bytes.

Words and spellings are ovs-fields(7)'s and ovs-actions(7)'s.
"""
