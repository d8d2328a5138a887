-- Messages of the embedded broker. A row is in exactly one queue and goes when it is acknowledged.
CREATE TABLE IF NOT EXISTS queue_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Full name, prefix included.
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    -- 1 while the consuming process holds it; the next consuming process starts by clearing it.
    claimed INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0,
    -- Instants are milliseconds of Unix time. available_at is set in the retry queues only.
    available_at INTEGER,
    expires_at INTEGER,
    timestamp INTEGER,
    message_id TEXT,
    correlation_id TEXT,
    reply_to TEXT,
    -- A JSON object of strings.
    headers TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_messages_order
    ON queue_messages (queue, claimed, priority DESC, id);
CREATE INDEX IF NOT EXISTS queue_messages_available
    ON queue_messages (available_at) WHERE available_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS queue_messages_expires
    ON queue_messages (expires_at) WHERE expires_at IS NOT NULL;
