"""What can go wrong around a job, by whose fault it is: that decides what happens to the node.

`UserMistake` fails the job and leaves the node in service; `NodeFault` fails the job and takes the node out of
service, because the next job would meet the same. Both carry one line for the user.
"""


class UserMistake(Exception):
    """The job asks for what cannot be, here or on any node."""


class NodeFault(Exception):
    """This node cannot do what the job may rightly ask for."""
