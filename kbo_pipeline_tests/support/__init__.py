"""What tests share: worlds to set up, rows, ZIPs, servers, processes."""
