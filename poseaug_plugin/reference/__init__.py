"""PoseAug as published (Gong, Zhang and Feng, CVPR 2021), and as its code was released."""
