#!/bin/bash
# Health check of a container: does ADDRESS PORT take connections? mongod and mongos listen only once they are ready.
exec 3<>"/dev/tcp/$1/$2"
