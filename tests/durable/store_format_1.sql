-- A store of the format 1, as its first release wrote it; never changed.
PRAGMA application_id = 1936484212;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run INTEGER NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        data TEXT,
        digest BLOB NOT NULL,
        sent_at REAL NOT NULL,
        consumed_by INTEGER,
        UNIQUE (run, key)
    );
INSERT INTO "messages" VALUES(1,1,'event','answer-1',NULL,X'F35970B66221FA063053026713BC9595',1000.0,4);
INSERT INTO "messages" VALUES(2,1,'event','answer-2','{"yes":false}',X'1C88BD4DEBC2D9E3ACEECCAE9C3A82E9',1000.0,NULL);
CREATE TABLE owners (
        owner TEXT PRIMARY KEY,
        machine TEXT NOT NULL,
        pid INTEGER NOT NULL,
        opened_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        lease REAL NOT NULL,
        lost INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
CREATE TABLE records (
        run INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        data TEXT NOT NULL,
        shown INTEGER,
        PRIMARY KEY (run, sequence)
    ) WITHOUT ROWID;
INSERT INTO "records" VALUES(1,1,1000.0,'base','{"t":"base"}',NULL);
INSERT INTO "records" VALUES(1,2,1001.0,'done','{"k":1,"r":"ü"}',NULL);
INSERT INTO "records" VALUES(1,3,1002.0,'pub','{"k":2}',1);
INSERT INTO "records" VALUES(1,4,1003.0,'in','{}',NULL);
INSERT INTO "records" VALUES(2,1,1005.0,'base','{"t":"base"}',NULL);
CREATE TABLE runs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL UNIQUE,
        workflow TEXT NOT NULL,
        start_key TEXT NOT NULL,
        created_at REAL NOT NULL,
        status TEXT NOT NULL,
        updated_at REAL NOT NULL,
        wake_at REAL,
        questions TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        base INTEGER NOT NULL,
        shown INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        owner TEXT,
        unread INTEGER NOT NULL,
        due_at REAL
    );
INSERT INTO "runs" VALUES(1,'essay-1','Essay','start',1000.0,'parked',1004.0,2000.0,'[{"id":"q1"}]',4,1,1,1,NULL,1,0.0);
INSERT INTO "runs" VALUES(2,'essay-2','Essay','start',1005.0,'completed',1006.0,NULL,'[]',1,1,0,1,NULL,0,NULL);
CREATE INDEX runs_by_status ON runs (status, number);
CREATE INDEX runs_due ON runs (owner, workflow, due_at) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX records_shown ON records (run, shown) WHERE shown IS NOT NULL;
CREATE INDEX messages_unread ON messages (run, id) WHERE consumed_by IS NULL;
CREATE VIEW journal AS
        SELECT runs.run_id, records.sequence, datetime(records.at, 'unixepoch') AS at,
            records.kind, records.shown, records.data
        FROM records JOIN runs ON runs.number = records.run;
COMMIT;
