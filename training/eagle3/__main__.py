"""`python -m training.eagle3`. The trainer is a module of its own because the ranks import it."""

from training.eagle3.train import main

if __name__ == "__main__":
    main()
