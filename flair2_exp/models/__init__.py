"""The networks: U-Net, U-TAE and their fusion, U-T&T."""
