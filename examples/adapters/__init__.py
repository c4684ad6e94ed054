"""The formats of known code bases: one file each, to be copied beside a training script."""
