//! Links, addresses, routes and neighbours: the one module that speaks rtnetlink.
