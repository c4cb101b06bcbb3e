"""Arms behind a network: Universal Robots (``ur.py``), UFACTORY (``xarm.py``), Franka (``fr3.py``,
``fer.py``).

The vendors' SDKs block without a deadline, some while they hold the interpreter's lock, and start threads of their own.
So each arm's SDK runs in a process of its own (``link.py``), which streams setpoints and readings through shared memory
and can be killed. A vendor's module only says how to open, read, command and recover (a ``Session``).
"""
