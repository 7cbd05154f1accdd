"""Reading and writing with a trained model.

session.py   wake, sleep when the window is full, wake again
"""
