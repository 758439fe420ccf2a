# Starts a server and outlives it: when standard input closes, because the process that holds the
# other end let go of it or died, the server is killed.
# Arguments: folder of libraries, log file, then the server's command line.
libraries=$1; log=$2; shift 2
LD_LIBRARY_PATH="$libraries" "$@" >>"$log" 2>&1 &
server=$!
echo "$server"
cat >/dev/null
kill -9 "$server" 2>/dev/null
wait "$server" 2>/dev/null
