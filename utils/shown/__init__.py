"""What a person sees: the progress bar, log.txt, pictures."""
