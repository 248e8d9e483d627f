"""What we use of Dagster's insides, as a table: what for, and what happens without it.

`test_insides.py` compares each part with the installed Dagster, by its name.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Inside:
    """A part of Dagster's insides.

    Attributes:
        name: by which a test fails when Dagster changes it.
        modules: of ours that use it, below `kbo_pipeline.operate`.
        purpose: what we use it for.
        without: what happens with another version; of one that stays, why nothing public will do.
        needs: what has to be there and how it looks: the parameters of a function, `has` and names
            of columns or attributes, or `=` and a value.
        stays: it is used with any version.
    """

    name: str
    modules: tuple[str, ...]
    purpose: str
    without: str
    needs: dict[str, str]
    stays: bool = False


_SCHEMA = "dagster._core.storage.event_log.schema"
_EVENT_LOG = "dagster_postgres:PostgresEventLogStorage"
_SERVER = "dagster_webserver.webserver:DagsterWebserver"

INSIDES = (
    Inside(
        "storage address",
        ("processes.storage",),
        "Each process finds PostgreSQL by its own environment, and starts the embedded server.",
        "Stays: the `postgres` section of dagster.yaml needs a variable that is set for every"
        " command, and the embedded server has no address before somebody starts it.",
        {
            "dagster_postgres:DagsterPostgresStorage.__init__": "postgres_url"
            " should_autocreate_tables inst_data token_provider",
            "dagster_postgres:DagsterPostgresStorage.from_config_value": "inst_data config_value",
            "dagster_postgres:DagsterPostgresStorage.config_type": "",
            "dagster_postgres:DagsterPostgresStorage.run_storage": "has fget",
            "dagster_postgres:DagsterPostgresStorage.event_log_storage": "has fget",
        },
        stays=True,
    ),
    Inside(
        "errors of PostgreSQL",
        ("processes.storage", "repair.repair"),
        "A step during which PostgreSQL goes away is interrupted, not failed; commands name it.",
        "Stays: Dagster raises this class, and no other one, when it cannot connect.",
        {"dagster_postgres.utils:DagsterPostgresException": "has __cause__"},
        stays=True,
    ),
    Inside(
        "removed partitions",
        ("runs.partitions", "processes.storage"),
        "An extract that is rolled back or too old is missing again; so is a batch to be repaired.",
        "Stays: Dagster's PostgreSQL storage cannot remove single partitions of an asset.",
        {
            f"{_EVENT_LOG}.wipe_asset_partitions": "asset_key partition_keys",
            f"{_EVENT_LOG}.index_connection": "",
            f"{_EVENT_LOG}.index_transaction": "",
            "dagster._core.storage.event_log:SqlEventLogStorage": "has index_connection",
            f"{_SCHEMA}:SqlEventLogStorageTable": "has id asset_key partition dagster_event_type",
            f"{_SCHEMA}:AssetEventTagsTable": "has event_id",
            f"{_SCHEMA}:AssetKeyTable": "has asset_key last_materialization cached_status_data",
            f"{_SCHEMA}:AssetCheckExecutionsTable": "has asset_key partition",
        },
        stays=True,
    ),
    Inside(
        "view of the queue",
        ("processes.storage", "processes.queue_view"),
        "The view kbo_queue reads runs and events; it is dropped before their columns are altered.",
        "Stays: it is documented for people who look into PostgreSQL. Where it cannot be made, a"
        " line says so, and nothing else needs it.",
        {
            "dagster_postgres:PostgresRunStorage.upgrade": "",
            "dagster_postgres:PostgresRunStorage.connect": "",
            "dagster._core.storage.runs.schema:RunsTable": "has run_id pipeline_name run_body"
            " status create_timestamp start_time end_time",
            "dagster._core.storage.runs.schema:RunTagsTable": "has run_id key value",
            f"{_SCHEMA}:SqlEventLogStorageTable": "has id run_id event dagster_event_type",
        },
        stays=True,
    ),
    Inside(
        "names of tags and jobs",
        ("runs.progress", "runs.recovery"),
        "Runs say by tags what they are about, whether they are retried, and where they run.",
        "Stays: these names are in each database; the public API has none of them.",
        {
            "dagster._core.storage.tags:MAX_RETRIES_TAG": "= 'dagster/max_retries'",
            "dagster._core.storage.tags:PARTITION_NAME_TAG": "= 'dagster/partition'",
            "dagster._core.storage.tags:WILL_RETRY_TAG": "= 'dagster/will_retry'",
            "dagster._core.storage.tags:AUTO_RETRY_RUN_ID_TAG": "= 'dagster/auto_retry_run_id'",
            "dagster._core.storage.tags:GRPC_INFO_TAG": "= '.dagster/grpc_info'",
            "dagster._core.definitions.assets.job.asset_job:IMPLICIT_ASSET_JOB_NAME": "="
            " '__ASSET_JOB'",
        },
        stays=True,
    ),
    Inside(
        "methods of the instance",
        ("markers", "runs", "repair"),
        "Runs that died are ended, and what sensors have done is read.",
        "Stays: these methods are public by name, and documented nowhere.",
        {
            "dagster:DagsterInstance.add_run_tags": "run_id new_tags",
            "dagster:DagsterInstance.all_instigator_state": "repository_origin_id"
            " repository_selector_id instigator_type instigator_statuses",
            "dagster:DagsterInstance.get_ticks": "origin_id selector_id before after limit"
            " statuses",
            "dagster:DagsterInstance.report_run_canceled": "dagster_run message",
            "dagster:DagsterInstance.report_run_canceling": "run message",
            "dagster:DagsterInstance.report_run_failed": "dagster_run message job_failure_data",
            f"{_EVENT_LOG}.free_concurrency_slots_for_run": "run_id",
            f"{_EVENT_LOG}.get_latest_storage_id_by_partition": "asset_key event_type"
            " partitions after_cursor",
            "dagster_postgres:PostgresRunStorage.get_cursor_values": "keys",
            "dagster_postgres:PostgresRunStorage.set_cursor_values": "pairs",
            "dagster_postgres:PostgresRunStorage.alembic_version": "",
        },
        stays=True,
    ),
    Inside(
        "guard of the web server",
        ("processes.webserver",),
        "Other pages of a browser are refused, and /kbo/status is answered.",
        "Stays: Dagster's command has no option for it, and a web server without it obeys any page"
        " that a browser shows.",
        {"dagster_webserver.cli:uvicorn.run": "has __call__"},
        stays=True,
    ),
    Inside(
        "shared connections",
        ("processes.storage",),
        "An event does not open two connections; a PostgreSQL that is away is waited for.",
        "Each event opens connections of its own, and an absent PostgreSQL is waited for as long as"
        " Dagster does, some seconds.",
        {
            "dagster_postgres:PostgresRunStorage": "has _engine",
            _EVENT_LOG: "has _engine",
            "dagster_postgres:PostgresScheduleStorage": "has _engine",
            "dagster_postgres:PostgresRunStorage.has_run_stats_index_cols": "",
        },
    ),
    Inside(
        "events at once",
        ("processes.storage",),
        "What a run is to make, up to 448 partitions, is stored by one statement, and so are the"
        " seven events of a batch.",
        "One statement for each event, which takes twice as long; after a kill -9 a batch may have"
        " some of its events, until the run that Dagster retries yields all of them again.",
        {
            "dagster._core.events:DagsterEventBatchMetadata.__new__": "id is_end",
            "dagster._core.events:DagsterEvent.asset_materialization": "step_context"
            " materialization batch_metadata",
            "dagster:AssetExecutionContext.get_step_execution_context": "",
            f"{_EVENT_LOG}.store_event_batch": "events",
            f"{_EVENT_LOG}.prepare_insert_event_batch": "events",
            f"{_EVENT_LOG}._connect": "",
            f"{_EVENT_LOG}._store_asset_event_tags": "conn events event_ids",
            f"{_EVENT_LOG}._store_asset_event": "conn event event_id",
            "dagster._core.instance.utils:_get_event_batch_size": "",
        },
    ),
    Inside(
        "checks of deleted runs",
        ("runs.partitions", "processes.storage"),
        "The results of asset checks go with the run that has made them.",
        "They stay in Dagster's tables.",
        {
            f"{_EVENT_LOG}.delete_events_for_run": "conn run_id",
            f"{_SCHEMA}:AssetCheckExecutionsTable": "has run_id",
        },
    ),
    Inside(
        "forked run workers",
        ("processes.programs",),
        "Run workers are forked from a process that has imported everything.",
        "Each run starts a new Python, which takes seconds.",
        {
            "dagster._grpc.server:DagsterApiServer": "has _mp_ctx",
            "dagster._cli:main": "has __call__",
        },
    ),
    Inside(
        "account out of the environment",
        ("processes.programs",),
        "A change of the portal's account in .env counts at once.",
        "It counts when kbo start is started again.",
        {
            "dagster._cli.utils:get_env_var_dict": "base_dir",
            "dagster._core.secrets.env_file:get_env_var_dict": "base_dir",
        },
    ),
    Inside(
        "tick of the daemon",
        ("processes.programs",),
        "Sensors are looked at each second.",
        "They are looked at each five seconds.",
        {"dagster._daemon.sensor:MIN_INTERVAL_LOOP_TIME": "= 5"},
    ),
    Inside(
        "grace of a run",
        ("runs.recovery",),
        "A run that applies batches and is told to end may finish the one that it is at.",
        "It is interrupted at once, which rolls its batch back.",
        {
            "dagster:DefaultRunLauncher.terminate": "run_id",
            "dagster:DefaultRunLauncher": "has _instance",
        },
    ),
    Inside(
        "limits of queries",
        ("processes.webserver",),
        "A GraphQL query that costs too much is refused, and one that lasts is given up.",
        "Queries are not limited, but for PostgreSQL's time for each statement.",
        {
            f"{_SERVER}.build_graphql_middleware": "",
            f"{_SERVER}.execute_graphql_request": "request query variables operation_name",
            f"{_SERVER}.graphql_execution_thread": "request query variables operation_name",
            f"{_SERVER}.execute_graphql_subscription": "websocket operation_id query variables"
            " operation_name",
            "dagster_webserver.app:DagsterWebserver": "has create_asgi_app",
        },
    ),
    Inside(
        "output of commands",
        ("instance",),
        "Commands do not capture what steps print; Ctrl-C ends them without tracebacks.",
        "It is captured, and Ctrl-C may print tracebacks.",
        {
            "dagster._core.instance.ref:InstanceRef.from_dir": "base_dir config_dir config_filename"
            " overrides",
            "dagster._core.storage.noop_compute_log_manager:NoOpComputeLogManager": "has"
            " from_config_value",
        },
    ),
    Inside(
        "errors in one line",
        ("runs.status",),
        "A wrong setting, and a run that a person has stopped, are one line in the web UI.",
        "They are shown with Dagster's own frames.",
        {
            "dagster._core.errors:DagsterUserCodeProcessError.__init__": "args kwargs",
            "dagster_shared.error:SerializableErrorInfo": "has message stack cls_name cause",
        },
    ),
    Inside(
        "runs by extract",
        ("runs.progress",),
        "The runs about an extract are found by their tags, without reading all runs.",
        "All runs are read.",
        {
            "dagster._core.storage.runs.schema:RunsTable": "has id run_id",
            "dagster._core.storage.runs.schema:RunTagsTable": "has run_id key value",
            "dagster._core.storage.runs.sql_run_storage:SqlRunStorage.connect": "",
        },
    ),
    Inside(
        "batches of one extract",
        ("runs.status",),
        "The status of an extract is two queries, however many extracts there are.",
        "The partitions of all extracts are read, table by table.",
        {
            f"{_SCHEMA}:DynamicPartitionsTable": "has partitions_def_name partition",
            f"{_SCHEMA}:SqlEventLogStorageTable": "has id asset_key partition dagster_event_type"
            " run_id",
            "dagster._core.storage.event_log:SqlEventLogStorage": "has index_connection",
        },
    ),
    Inside(
        "asking the code server",
        ("runs.recovery", "repair.repair"),
        "A silent code server is replaced; a run that no code server has is failed in seconds.",
        "Only a code server that has died is replaced, and such a run is failed by Dagster's own"
        " monitoring, two minutes after its start.",
        {
            "dagster._grpc.client:DagsterGrpcClient.__init__": "port socket host use_ssl metadata",
            "dagster._grpc.client:DagsterGrpcClient.can_cancel_execution": ""
            "can_cancel_execution_request timeout",
            "dagster._grpc.client:DagsterGrpcClient.get_server_id": "timeout",
            "dagster._grpc.types:CanCancelExecutionRequest": "has run_id",
            "dagster._grpc.types:CanCancelExecutionResult": "has can_cancel",
            "dagster_shared.serdes:deserialize_value": "has __call__",
        },
    ),
    Inside(
        "one retry more",
        ("runs.recovery",),
        "A run that failed of something that has passed is retried, where Dagster has given it up.",
        "It stays failed until kbo retry.",
        {
            "dagster._core.execution.retries:auto_reexecution_should_retry_run": "instance run"
            " run_failure_reason",
            "dagster._core.events:JobFailureData": "has error failure_reason",
            "dagster._core.events:RunFailureReason": "has RUN_EXCEPTION",
        },
    ),
)
"""All parts, those that stay first."""
