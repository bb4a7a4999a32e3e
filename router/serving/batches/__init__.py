"""How requests share the model: what each is given, in which batch it stands, and what its tokens say."""
