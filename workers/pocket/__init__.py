"""pocket: the small demo model that comes with FleetChat, and the code and dialogues that make it."""
