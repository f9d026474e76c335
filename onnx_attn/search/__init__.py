"""Ask the compiler: each distinct site in every form and layout that the target takes, and the best of them."""
