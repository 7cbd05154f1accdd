"""Checks and measurements on one GPU, from a kit of wheels; see gpu.sh beside this folder."""
