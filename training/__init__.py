"""Makes the embedded default model and its drafters. Only ever writes files that `engine` loads."""
