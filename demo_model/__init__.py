"""The demo model: a tiny Llama, the text it is trained on and the script that trains it."""
