"""Checks before a run: do model, data and options fit?"""
