"""The twin of a Universal Robots controller (e-Series, PolyScope 5), as ur_rtde sees it. ``server.UrTwin`` starts it.

``fields`` what RTDE can say, as a table; ``rtde`` port 30004; ``dashboard`` port 29999; ``script`` ports 30001-30003;
``controller`` the robot behind them; ``server`` the ports, each twin on a loopback address of its own.

Programs are not interpreted: of an uploaded script the twin knows ur_rtde's register handshake (``controller``), and
any other is counted and ended. Inverse kinematics, tool commands, force mode and inputs and outputs are not there.
"""
