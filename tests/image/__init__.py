"""The image, built without a container engine: its steps run in fresh root file systems.

    make test-image        # as root; needs debootstrap

IMAGE="--bind PATH --env NAME=VALUE" passes on what pip needs on this machine.

recipe.py   Dockerfile, hypnos.def and compose.yaml as steps
root.py     a root file system: made by debootstrap, files copied in, commands run in it
"""
