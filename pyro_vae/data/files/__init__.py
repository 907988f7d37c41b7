"""A user's own data: arrays, tables and folders of images."""
