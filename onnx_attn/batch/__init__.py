"""Make a baked batch dynamic: where the batch is in every tensor, and what has to be written anew for that."""
