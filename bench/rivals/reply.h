/* The canned reply of the C responders: hello, with the fields that fastserve sends. */
#define REPLY "HTTP/1.1 200 OK\r\n" \
    "Server: fastserve\r\n" \
    "Date: Mon, 02 Nov 2026 09:00:00 GMT\r\n" \
    "Content-Type: text/plain; charset=utf-8\r\n" \
    "Content-Length: 14\r\n" \
    "\r\n" \
    "Hello, World!\n"
#define REPLY_SIZE (sizeof(REPLY) - 1)
