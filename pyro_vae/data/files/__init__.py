"""Data of a user's own: arrays, tables and folders of images."""
