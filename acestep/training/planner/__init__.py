"""The built-in planner's recipe: its words and material, its training and its judge."""
