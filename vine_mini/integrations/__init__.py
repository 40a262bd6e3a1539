"""VinePPO on other engines. The package never imports this room, and each of its parts needs an engine of its own."""
