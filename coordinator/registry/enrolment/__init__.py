"""Who may submit: contributors and their keys, and invites for new ones."""
