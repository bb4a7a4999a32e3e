"""What coordinator and daemons tell each other through Flower: campaigns, replies, and the keys of nodes."""
