"""What the registry knows of campaigns, nodes, rounds and candidates."""
