"""Arms and leaders made of servo motors on one serial line: SO-100, SO-101, Koch, WidowX, ViperX, GELLO.

``kinds.py`` is what a rig file names; ``models.py`` says how each arm is built and ``registers.py`` what its motors
keep where. ``arm.py`` and ``leader.py`` drive them over ``bus.py``, which speaks through the vendors' own SDKs
(``feetech.py``, ``dynamixel.py``) on a ``port.py``. ``calibration.py`` is the file that turns ticks into radians.

Another arm of known motors is an entry in ``models.py`` and a class in ``kinds.py``; another motor, an entry in
``registers.py``.
"""
