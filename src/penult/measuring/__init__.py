"""What vectors are good for, in numbers: trials, episodes, intervals. Numpy in, numbers out."""
