"""The mathematics: problems, masks, positions, the definition. No files but masks', no engines."""
