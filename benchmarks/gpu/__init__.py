"""What is checked and measured on one GPU, from a kit of wheels; see gpu.sh beside this folder."""
