"""Import of `config.json` files from the Hugging Face hub."""
