"""What a token and a request cost the HTTP process, with an engine that computes nothing."""
