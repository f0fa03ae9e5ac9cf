"""A model split over the GPUs of a host: tokens, times, and what becomes of a rank that is lost."""
