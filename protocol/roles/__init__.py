"""Roles of The Update Framework: who may say which release is the newest, until when, and how keys are replaced."""
